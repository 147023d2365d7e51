"""Networks with the released topology; attributes keep the released tensor names."""
