"""What people open: reports, heat maps, tables and figures."""
