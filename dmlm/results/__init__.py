"""Results on disk, read and written as typed records, and the measures, tables and figures computed from them."""
