"""The tour that `make demo` runs: `tour` walks through a real bus, `tables` makes its data."""
