/* Amounts of money: decimal strings outside, whole minor units of the currency inside. No floats anywhere. Pure. */
#ifndef ADMIN_MONEY_H
#define ADMIN_MONEY_H

#include <stdint.h>

#include "pullgate/err.h"
#include "pullgate/str.h"

#define MONEY_MAX      ((int64_t)1000000000000000) /* minor units; what every JSON reader keeps exact, and far from an overflow */
#define MONEY_TEXT_MAX 32
#define MONEY_WHOLE    10000 /* 100 % in hundredths of a percent */

/* Digits after the point that ISO 4217 gives the currency: "EUR" 2, "JPY" 0, "KWD" 3; -1 when it is not three capital letters. */
int money_digits(struct str currency);
/* "19.99", "20", "0.5": no sign, no blanks, no more digits after the point than the currency has. */
enum err money_parse(struct str text, int digits, int64_t *ret_minor, struct error *reterr) MUST_USE;
/* With all its digits after the point: "20.00". Returns buf. */
const char *money_text(int64_t minor, int digits, char buf[MONEY_TEXT_MAX]);
/* minor times n; ERR_INVALID beyond MONEY_MAX. */
enum err money_times(int64_t minor, int64_t n, int64_t *ret, struct error *reterr) MUST_USE;
/* "12.5" -> 1250, hundredths of a percent; more than 0, at most 100. */
enum err money_percent_parse(struct str text, int64_t *ret_hundredths, struct error *reterr) MUST_USE;
/* That share of an amount (0..MONEY_MAX), half a minor unit rounded up. */
int64_t money_share(int64_t minor, int64_t hundredths);

#endif
