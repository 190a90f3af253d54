"""Reports: records to tables, tables to figures, figures to one HTML page."""
