"""A whole consortium on one machine: the real commands, certificates, processes and sockets, on loopback."""
