// From here on a multiplication and an addition stay two roundings: results equal the specification's bit for bit.
// Include it after the headers whose functions may use FMA.
#pragma once
#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif
