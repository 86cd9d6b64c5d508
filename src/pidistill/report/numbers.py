"""How every table, page and card writes a number."""


def figures(value: int | float | None) -> str:
    """A number for people: three significant figures, counts in full, no exponents.

    A missing value is a dash: 0.170, 242, 1,520, 320,000, -.
    """
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 999.5:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:#.3g}".rstrip(".")
