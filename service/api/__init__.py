"""REST: routes translate, call and return."""
