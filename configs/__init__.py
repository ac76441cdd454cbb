"""The ground floor: the typed configuration tree, its loader, the errors, and the shipped `*.yaml`."""
