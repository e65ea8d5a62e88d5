import java.io.OutputStream;
import java.io.PrintStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.apache.hadoop.conf.Configured;
import org.apache.hadoop.fs.FileEncryptionInfo;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.hdfs.DistributedFileSystem;
import org.apache.hadoop.hdfs.protocol.SnapshottableDirectoryStatus;
import org.apache.hadoop.hdfs.server.namenode.Resave;
import org.apache.hadoop.hdfs.tools.offlineImageViewer.OfflineImageViewerPB;
import org.apache.hadoop.util.Tool;

/** What the tests of images need of Hadoop's classes. The first argument is the work. */
public class Images extends Configured implements Tool {
  private static final String EDEK = "raw.hdfs.crypto.file.encryption.info";

  /** Files that stay open for writing until the JVM ends. */
  private static final List<OutputStream> OPEN = new ArrayList<>();

  @Override
  public int run(String[] args) throws Exception {
    switch (args[0]) {
      case "oiv": // IMAGE XML
        return OfflineImageViewerPB.run(new String[] {"-p", "XML", "-i", args[1], "-o", args[2]});
      case "resave": // NAME-FOLDER TO CODEC...
        Resave.run(getConf(), args[1], args[2], Arrays.copyOfRange(args, 3, args.length));
        return 0;
      case "open": // FILE
        OPEN.add(FileSystem.get(getConf()).create(new Path(args[1])));
        return 0;
      case "raw": // FROM TO: TO gets FROM's EDEK, as distcp -px gives it
        FileSystem fs = FileSystem.get(getConf());
        fs.create(new Path(args[2])).close();
        fs.setXAttr(new Path("/.reserved/raw" + args[2]), EDEK,
            fs.getXAttr(new Path("/.reserved/raw" + args[1]), EDEK));
        return 0;
      case "walk":
        walk((DistributedFileSystem) FileSystem.get(getConf()), System.out);
        return 0;
      default:
        throw new IllegalArgumentException(args[0]);
    }
  }

  /** Prints "live" or "snapshot", version and EDEK of each path that a client sees. */
  private static void walk(DistributedFileSystem fs, PrintStream out) throws Exception {
    files(fs, new Path("/"), "live", out);
    SnapshottableDirectoryStatus[] folders = fs.getSnapshottableDirListing();
    for (SnapshottableDirectoryStatus folder : folders == null ? new SnapshottableDirectoryStatus[0] : folders) {
      for (FileStatus snapshot : fs.listStatus(new Path(folder.getFullPath(), ".snapshot"))) {
        files(fs, snapshot.getPath(), "snapshot", out);
      }
    }
  }

  private static void files(DistributedFileSystem fs, Path folder, String where, PrintStream out) throws Exception {
    for (FileStatus s : fs.listStatus(folder)) {
      if (s.isDirectory()) {
        files(fs, s.getPath(), where, out);
        continue;
      }
      FileEncryptionInfo info = fs.getClient().getFileInfo(s.getPath().toUri().getPath()).getFileEncryptionInfo();
      if (info != null) {
        out.print(where + " " + info.getEzKeyVersionName() + " ");
        for (byte b : info.getEncryptedDataEncryptionKey()) {
          out.printf("%02x", b);
        }
        out.println();
      }
    }
  }
}
