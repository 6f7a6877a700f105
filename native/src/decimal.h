/* Reads decimal numbers the same in every locale. */
#ifndef MTLC_DECIMAL_H
#define MTLC_DECIMAL_H

#include <stdbool.h>
#include <stddef.h>

/* The double nearest to the number that these bytes are, such as "-1.5e3"; false where there is no memory. */
bool read_decimal(const char *digits, size_t length, double *number);

#endif
