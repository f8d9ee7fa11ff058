"""Results of a sweep: collected, compared, and shown as a table, figures and a page."""
