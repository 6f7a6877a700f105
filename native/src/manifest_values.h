/* Reads single values of a manifest, each with the key that an error names. */
#ifndef MTLC_MANIFEST_VALUES_H
#define MTLC_MANIFEST_VALUES_H

#include "json.h"
#include "manifest.h"

/* A place in the manifest: `inside`, then `name` or [place]. It lives as long as the call that it is given to. */
typedef struct key {
    const struct key *inside;
    text name;
    long place; /* NO_NAME where it is a name */
} key;

key key_named(const key *inside, text name);
key key_placed(const key *inside, size_t place);
/* Ends the check with a line that begins with the key. */
void refuse_key(check *of, mtlc_code code, const key *at, const char *format, ...) NEVER_RETURNS PRINTF_LIKE(4, 5);

/* A value that must be there. */
json *need(check *of, const json *table, const char *name, const key *inside);
/* A value that need not be; NULL also for null. */
json *allow(const json *table, const char *name);

void be_table(check *of, const json *value, const key *at);
/* Refuses a table that has a key which is not among the `known`, a list that NULL ends. */
void be_known_keys(check *of, const json *value, const key *at, const char *const *known, mtlc_code code);
void be_any_table(check *of, const json *value, const key *at);
void be_list(check *of, const json *value, const key *at, size_t most);
text read_name(check *of, const json *value, const key *at);
text read_file_name(check *of, const json *value, const key *at);
void check_file_name(check *of, text name, const key *at);
text read_choice(check *of, const json *value, const key *at, const char *const *known);
int64_t read_whole(check *of, const json *value, const key *at);
double read_finite(check *of, const json *value, const key *at);
bool read_truth(check *of, const json *value, const key *at);
double read_width(check *of, const json *value, const key *at);
texts read_names(check *of, const json *value, const key *at);
numbers read_numbers(check *of, const json *value, const key *at);
shape read_shape(check *of, const json *value, const key *at);
mtlc_dtype read_dtype(check *of, const json *value, const key *at);



#endif
