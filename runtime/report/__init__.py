"""Reports: one HTML file that shows explanations of many images, without a network or a server."""
