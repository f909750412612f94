"""Load for the servers in ``examples``: members of the chat, or viewers of the live picture."""
