"""How rows leave: exit loop, active rows, K/V cache, trace and the FLOP price list."""
