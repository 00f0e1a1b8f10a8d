"""Money that survives crashes: levels, the journal of transfers, sending and receiving them."""
