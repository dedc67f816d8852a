/* Time-based one-time passwords (RFC 6238) as authenticator programs make them: SHA-1, six digits, steps of 30 seconds. Pure: whoever
 * calls knows the time and keeps the last step that was used. */
#ifndef PULLGATE_TOTP_H
#define PULLGATE_TOTP_H

#include <stdbool.h>
#include <stdint.h>

#include "pullgate/str.h"

#define TOTP_KEY_LEN  20 /* bytes; RFC 4226 R6 */
#define TOTP_DIGITS   6
#define TOTP_PERIOD_S 30

void totp_code(struct str key, int64_t step, char ret[TOTP_DIGITS + 1]);
/* The step before, the present and the next one fit, none that is not after last_step: a code is used once. *ret_step: the one. */
bool totp_check(struct str key, struct str code, int64_t now_s, int64_t last_step, int64_t *ret_step);
/* RFC 4648 6, upper case, without padding: how authenticator programs take a key. */
void base32_encode(struct str in, struct strbuf *ret);
/* "otpauth://totp/ISSUER:ACCOUNT?secret=…" */
void totp_uri(struct str key, struct str issuer, struct str account, struct strbuf *ret);

#endif
