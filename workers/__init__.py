"""The processes: what starts, runs, watches and stops components. Knows the bus and the method."""
