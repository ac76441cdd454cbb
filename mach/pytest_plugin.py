"""The door for tests: pytest loads this from any environment that has MACH installed."""
