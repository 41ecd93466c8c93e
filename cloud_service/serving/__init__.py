"""How bytes reach the service: its sockets, its limits on connections, and files that go out without a copy."""
