"""How messages travel: one edge without I/O, its wire format, and two transports (ZeroMQ, virtual time)."""
