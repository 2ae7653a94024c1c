"""What must outlive the process, in one SQLite file: keys, and what was used with them."""
