"""Whatever a file holds, a reader reads it or says where it breaks and what to do; see readers.py."""
