"""Pages, plots and numbers for people: one family of templates for every report."""
