// Package terminal writes what a command shows: its data, as text for people or as JSON for programs
// (Output), and how far its work has come (Progress). Whatever passes through this package is safe for a
// terminal: characters that move the cursor, end a line or hide other characters arrive escaped, because a
// key's name may hold any character and some texts come from other servers.
//
// The escaping itself is claviger.Escape. Packages that write no output but name keys in their messages use
// it too, through claviger.Printable.
package terminal
