"""Where tasks run: processes of this machine or a Ray cluster. Leases record which process works on what."""
