"""What is above every plugin: configuration and routing of the Interledger Protocol."""
