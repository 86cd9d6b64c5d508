"""Number formatting for tables, pages and cards."""


def figures(value: int | float | None) -> str:
    """Format a number with three significant figures, counts in full, without exponents.

    Examples: 0.170, 242, 1,520, 320,000; a missing value is "-".
    """
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 999.5:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:#.3g}".rstrip(".")
