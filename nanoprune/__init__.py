"""What the nine scripts share. Each room's first line says what lives there."""
