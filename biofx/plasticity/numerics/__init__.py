"""Numbers that depend on nothing but their keys: draws, polynomials, a parameter's part."""
