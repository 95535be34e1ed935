// Proof that a loaded file is this library.
#include "team.h"

OL_API int ol_version() { return 0; }
