"""Operations that are faster than plain torch and equal to it."""
