"""CURVE (ZeroMQ RFC 26) for the sockets of one process: who has not the run's keys is refused, and counted.

Every socket that binds is a CURVE server with the run's pair, every one that connects a client with the same pair;
ZAP (RFC 27) lets in that one public key. A handshake happens in ZeroMQ's own thread and the authenticator's: the
training loop only reads, now and then, how many failed, and which of its own succeeded.
"""

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from bus.keys import Keys

REFUSALS = zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_AUTH
FAILURES = zmq.Event.HANDSHAKE_FAILED_NO_DETAIL | REFUSALS
"""Who connects counts none without a detail: so ends a handshake with a process that is stopped."""
SUCCESS = zmq.Event.HANDSHAKE_SUCCEEDED
AT_ONCE = 64
"""Events of one socket read in one go."""

Socket = zmq.Socket[bytes]


def new_keys() -> Keys:
    """A fresh pair."""
    return Keys(*zmq.curve_keypair())


def is_pair(keys: Keys) -> bool:
    """Whether the halves belong together."""
    try:
        return zmq.curve_public(keys.secret) == keys.public
    except zmq.ZMQError:  # Z85's letters, and yet no number of 32 bytes
        return False


class Guard:
    """The keys at work, in one context."""

    def __init__(self, context: "zmq.Context[Socket]", keys: Keys) -> None:
        self._keys = keys
        self._authenticator = ThreadAuthenticator(context)  # kept: ZAP ends with it
        self._authenticator.start()
        self._authenticator.configure_curve_callback("*", credentials_provider=self)
        self._monitors: dict[Socket, Socket] = {}
        self._handshakes: dict[Socket, int] = {}

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the holder of a public key, in Z85, may enter. Called by the authenticator's thread."""
        return key == self._keys.public

    def protect(self, socket: Socket, *, server: bool) -> None:
        """To be called before the socket binds or connects."""
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
        if server:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
        else:
            socket.setsockopt(zmq.CURVE_SERVERKEY, self._keys.public)
            self._handshakes[socket] = 0
        self._monitors[socket] = socket.get_monitor_socket(FAILURES if server else REFUSALS | SUCCESS)

    def refused(self) -> int:
        """Handshakes that have failed since the last call."""
        count = 0
        for socket, monitor in self._monitors.items():
            read = 0
            while read < AT_ONCE and int(monitor.get(zmq.EVENTS)) & zmq.POLLIN:
                well = recv_monitor_message(monitor, zmq.NOBLOCK)["event"] == SUCCESS
                read, count = read + 1, count + (not well)
                if well:
                    self._handshakes[socket] += 1
        return count

    def handshakes(self, socket: Socket) -> int:
        """How many a socket that connects has had, as far as `refused` has read: after the first it connected anew."""
        return self._handshakes[socket]

    def release(self, socket: Socket) -> None:
        """To be called before the socket is closed."""
        monitor = self._monitors.pop(socket, None)
        self._handshakes.pop(socket, None)
        if monitor is not None:
            socket.disable_monitor()
            monitor.close(linger=0)

    def close(self) -> None:
        """End the authenticator."""
        self._authenticator.stop()
