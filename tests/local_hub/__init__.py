"""A Hub on the loopback interface, for tests that run the genuine client and our commands over a real socket."""
