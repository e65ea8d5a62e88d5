package verdict

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"claviger"
	"claviger/census"
	"claviger/migrate"
	"claviger/shellword"
)

// addToDo makes the shortest list of steps after which no EDEK of the images needs what is judged. A re-encryption
// reaches all live files of a zone, also those in its trash and those that are open for writing.
func (j *judge) addToDo() {
	for i := range j.Images {
		j.zonesToDo(i)
	}
	for i := range j.Images {
		j.outsideToDo(i)
		j.snapshotsToDo(i)
	}
	if len(j.v.ToDo) > 0 {
		j.do("", "then %s", newImage)
	}
}

// do adds a step. command is the command that does it, or "".
func (j *judge) do(command, format string, args ...any) {
	j.v.ToDo = append(j.v.ToDo, migrate.Step{Do: fmt.Sprintf(format, args...), Command: command})
}

// zonesToDo adds a step for each zone with live EDEKs that count.
func (j *judge) zonesToDo(image int) {
	for i := range j.Images[image].Report.Zones {
		z := &j.Images[image].Report.Zones[i]
		var live, trash uint64
		for _, v := range z.Versions {
			if j.judged(v.Version) {
				live += v.Live
				trash += v.InTrash
			}
		}
		path := claviger.Printable(j.place(image, z.Path))
		start := shellword.Command("hdfs", "crypto", "-reencryptZone", "-start", "-path", j.argument(image, z.Path))
		switch {
		case live == 0 || z.State != "live": // else snapshotsToDo has the zone's EDEKs
		case j.running(z):
			j.do("hdfs crypto -listReencryptionStatus", "wait for the end of the re-encryption of zone %s: %d EDEKs",
				path, live)
		case live == trash:
			j.do("hdfs dfs -expunge -immediate", "empty the trash of zone %s, as each user, or re-encrypt the zone: "+
				"%d EDEKs", path, live)
		default:
			j.do(start, "re-encrypt zone %s: %d EDEKs", path, live)
		}
	}
}

// outsideToDo adds a step for each judged version that live files outside of zones have.
func (j *judge) outsideToDo(image int) {
	r := j.Images[image].Report
	for i := range r.Versions {
		v := &r.Versions[i]
		if !j.judged(v.Version) {
			continue
		}
		outside := v.Counts
		for _, z := range r.Zones {
			for _, of := range z.Versions {
				if of.Version == v.Version {
					outside.Live -= min(outside.Live, of.Live)
					outside.OpenForWrite -= min(outside.OpenForWrite, of.OpenForWrite)
				}
			}
		}
		if outside.Live == 0 {
			continue
		}
		closed := ""
		if n := outside.OpenForWrite; n > 0 {
			closed = fmt.Sprintf("; wait until the %d of them that are open are closed", n)
		}
		j.do(shellword.Command("claviger", "edek", "census", "--list", v.Version, j.Images[image].Name),
			"delete the raw copies outside of zones with EDEKs of %s, or copy them again from re-encrypted files: %d "+
				"files%s", claviger.Printable(v.Version), outside.Live, closed)
	}
}

// snapshotsToDo adds a step for each snapshot that shows EDEKs that count.
func (j *judge) snapshotsToDo(image int) {
	all := map[string]*census.SnapshotUse{}
	for i := range j.Images[image].Report.Versions {
		v := &j.Images[image].Report.Versions[i]
		if !j.judged(v.Version) {
			continue
		}
		for _, s := range v.Snapshots {
			if all[s.Snapshot] == nil {
				all[s.Snapshot] = &census.SnapshotUse{Snapshot: s.Snapshot, Deleted: s.Deleted}
			}
			all[s.Snapshot].EDEKs += s.EDEKs
		}
	}
	for _, path := range slices.Sorted(maps.Keys(all)) {
		s := all[path]
		folder, name := splitSnapshot(path)
		if s.Deleted {
			j.do("", "delete the snapshots of %s that are older than %s: %d EDEKs. Its owner has deleted it, and the "+
				"NameNode keeps it until the older ones are deleted", claviger.Printable(j.place(image, folder)),
				claviger.Printable(name), s.EDEKs)
			continue
		}
		j.do(shellword.Command("hdfs", "dfs", "-deleteSnapshot", j.argument(image, folder), name),
			"delete snapshot %s, and older ones of the folder that show the same files: %d EDEKs",
			claviger.Printable(j.place(image, path)), s.EDEKs)
	}
}

// splitSnapshot splits the path FOLDER/.snapshot/NAME.
func splitSnapshot(path string) (folder, name string) {
	const between = "/.snapshot/"
	i := strings.LastIndex(path, between)
	if i < 0 {
		return path, ""
	}
	return max(path[:i], "/"), path[i+len(between):]
}
