/* Ends a check or a call with a code and one line. */
#ifndef MTLC_REFUSAL_H
#define MTLC_REFUSAL_H

#include "arena.h"
#include "mtlc.h"

#include <setjmp.h>

#if defined(__GNUC__)
#define PRINTF_LIKE(text, values) __attribute__((format(printf, text, values)))
#define NEVER_RETURNS __attribute__((noreturn))
#else
#define PRINTF_LIKE(text, values)
#define NEVER_RETURNS
#endif

/* Writes the line into `error`, which may be NULL, and gives `code` back. Control characters become '?'. */
mtlc_code fail(mtlc_error *error, mtlc_code code, const char *format, ...) PRINTF_LIKE(3, 4);

/* A check that is under way. Its memory is the arena's, so that it may be left from anywhere by `refuse`. */
typedef struct check {
    jmp_buf end;
    arena *memory;
    mtlc_error error;
} check;

/* Leaves the check: its setjmp returns, and `error` says why. */
void refuse(check *of, mtlc_code code, const char *format, ...) NEVER_RETURNS PRINTF_LIKE(3, 4);

/* Memory of the check's arena; refuses where there is none left. */
void *take(check *of, size_t count, size_t size);

/* A text for a message: at most 60 characters of it, in quotes. Of eight calls the results stay. */
const char *shown(text of);

#endif
