/* Tells whether this processor computes INT8 weights of the full range wrongly. */
#ifndef MTLC_PROCESSOR_H
#define MTLC_PROCESSOR_H

#include <stdbool.h>

/* Whether sums of two products of 8-bit numbers saturate at 16 bits here: on x86 without VNNI. False where the system
 * does not tell. */
bool processor_saturates(void);

#endif
