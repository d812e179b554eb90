"""Where tasks run: processes of this machine, or a Ray cluster; leases say who works on what."""
