"""What `make bench` measures: ratios against limits that are measured beside them.

See README.md for how to read the table and how each limit is defined.
"""
