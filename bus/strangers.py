"""Connections at a door without keys that ended before anybody we know had spoken on them.

What is longer than `MAXMSGSIZE`, or is no ZMTP at all, never becomes a message: libzmq hangs up. A monitor of the
socket tells of the end, by file descriptor, and a message says which descriptor it came over. One that hangs up
itself before its handshake ends is told apart by an event of its own, and not counted: it has said nothing, or what
it said in ZMTP 1.0 was counted as a message. One that hangs up after its handshake cannot be told apart, and is.

Costs nothing per message while all connections are of those that we know. What has happened at the door is read
before the messages that were there at the same look, and after that look: so nobody is heard before it is seen.
"""

import zmq
from zmq.utils.monitor import recv_monitor_message

AT_ONCE = 256
"""Events read in one look."""

_LEFT_ITSELF = zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
_EVENTS = zmq.Event.ACCEPTED | zmq.Event.DISCONNECTED | _LEFT_ITSELF

Socket = zmq.Socket[bytes]


class Strangers:
    """Who has connected to a socket and is not known yet."""

    def __init__(self, socket: Socket) -> None:
        """To be made before the socket is bound."""
        self._socket = socket
        self.monitor: Socket = socket.get_monitor_socket(_EVENTS)
        self._at_the_door: set[int] = set()
        self._leaves = False

    @property
    def there(self) -> bool:
        """Whether some connection is not known to be of one of ours."""
        return bool(self._at_the_door)

    def know(self, frame: zmq.Frame) -> None:
        """The connection over which this has come is of one of ours."""
        try:
            self._at_the_door.discard(int(frame.get(zmq.SRCFD)))
        except zmq.ZMQError:  # of ZMTP 1.0, which tells nothing of its connection
            return

    def gone(self) -> int:
        """Connections of strangers that have ended since the last look."""
        count = 0
        for _ in range(AT_ONCE):
            if not int(self.monitor.get(zmq.EVENTS)) & zmq.POLLIN:
                break
            said = recv_monitor_message(self.monitor, zmq.NOBLOCK)
            event, descriptor = said["event"], int(said["value"])
            if event == zmq.Event.ACCEPTED:
                self._at_the_door.add(descriptor)
            elif event == zmq.Event.DISCONNECTED and descriptor in self._at_the_door:
                self._at_the_door.remove(descriptor)
                count += not self._leaves
            self._leaves = event == _LEFT_ITSELF  # the one I/O thread says at once who it was
        return count

    def close(self) -> None:
        """To be called before the socket is closed (pyzmq#1020)."""
        self._socket.disable_monitor()
        self.monitor.close(linger=0)
