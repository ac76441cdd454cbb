"""MACH: the method. Free of imports, so that `mach.__main__` starts at once."""
