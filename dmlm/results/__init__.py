"""The files that a run leaves, read and written as typed records; measures, tables and figures made from them."""
