"""The page that shows a run, or several: pictures, tables, and rows to look at."""
