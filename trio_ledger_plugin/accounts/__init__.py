"""A server of many accounts, for every protocol: the table of accounts, their plugins, and what they share."""
