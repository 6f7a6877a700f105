/* Reads decimal numbers the same in every locale. */
#include "decimal.h"

#include <locale.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static locale_t plain;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_locale(void)
{
    plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
}

bool read_decimal(const char *digits, size_t length, double *number)
{
    char small[128];
    pthread_once(&once, make_locale);
    if (plain == (locale_t)0) {
        return false;
    }
    char *copy = length < sizeof small ? small : malloc(length + 1);
    if (copy == NULL) {
        return false;
    }
    memcpy(copy, digits, length);
    copy[length] = '\0';
    *number = strtod_l(copy, NULL, plain);
    if (copy != small) {
        free(copy);
    }
    return true;
}
