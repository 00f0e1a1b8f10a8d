"""The Interledger Protocol above plugins: configuration and routing."""
