"""Pages, plots and number formatting for all reports."""
