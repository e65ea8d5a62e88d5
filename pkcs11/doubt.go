package pkcs11

import (
	"fmt"
	"time"

	"claviger/filestamp"
)

// A token may refuse a wrong PIN with a code of the vendor's own. The same code may mean a fault that goes away. But a
// token locks after a few wrong tries, and then nothing opens its keys before its security officer comes. So a PIN is
// tried a few times only, with longer and longer pauses. If each login failed in this way, the PIN is not tried again
// until a person has looked at it.

// pausesOfDoubt are the pauses after the first, second ... login in a row that may have been a wrong try. After one
// more login, the PIN is not tried again. Tokens are known that lock after ten wrong tries.
var pausesOfDoubt = []time.Duration{time.Second, 10 * time.Second, time.Minute, 10 * time.Minute}

// recheckPause is the time between two readings of the PIN file while its PIN is not tried. The file may hold another
// PIN by then.
const recheckPause = time.Second

// doubt is the record of logins in a row with one PIN that may have been wrong tries.
type doubt struct {
	logins int
	last   time.Time // when the last login failed
	files  pinFiles  // at that time
	err    error     // of the last login
	token  string    // see trial.name
}

// stopped reports whether the PIN is not tried again.
func (d *doubt) stopped() bool { return d.logins > len(pausesOfDoubt) }

// heldBack is the error of a login that was not tried, because the PIN may be wrong. It hides the code of the login
// before it, which would count as a fault of the token.
type heldBack struct{ text string }

func (e heldBack) Error() string { return e.text }

// holdsBack returns why the PIN is not tried now, or nil. source is the place of the PIN, and file the stamp of the PIN
// file, zero if the PIN is in no file.
func (d *doubt) holdsBack(source string, file filestamp.Stamp) error {
	if !d.stopped() {
		next := d.last.Add(pausesOfDoubt[d.logins-1])
		if time.Until(next) <= 0 {
			return nil
		}
		return refusal{heldBack{fmt.Sprintf("%v; this code may mean that the PIN of %s is wrong, so the PIN is not "+
			"tried before %s; a corrected PIN is tried at once", d.err, source,
			next.UTC().Format(time.RFC3339))}, false}
	}
	cure := "start again with the right PIN"
	if file.Exists() {
		if d.logins < mostLogins && d.files.changed(source, file) {
			return nil // a person has written the file again: one more try
		}
		once := "touch the file for one more login"
		if d.logins >= mostLogins {
			once = "start again"
		}
		cure = "write the right PIN into the file, which is read again by itself; if the PIN is right, " + once
	}
	return refusal{heldBack{fmt.Sprintf("%v; %d logins in a row have failed in this way, so the PIN of %s may be "+
		"wrong, and it is not tried again, so that the token does not lock: %s", d.err, d.logins, source, cure)}, true}
}
