// Package terminal writes the output of a command: its data, as text for people or as JSON for programs (Output), and
// the progress of its work (Progress). All text that passes through this package is safe for a terminal. A key's name
// can hold any character, and some texts come from other servers. So characters that move the cursor, end a line or
// hide other characters are escaped.
//
// claviger.Escape does the escaping. Packages that write no output, but name keys in their messages, use it through
// claviger.Printable.
package terminal
