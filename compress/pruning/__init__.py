"""What is removed, when and by which criterion: recipes and the loop that runs them."""
