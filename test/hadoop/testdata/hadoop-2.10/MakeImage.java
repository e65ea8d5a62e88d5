import java.io.File;
import java.io.OutputStream;
import java.io.PrintStream;
import java.util.EnumSet;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.crypto.key.KeyProvider;
import org.apache.hadoop.crypto.key.KeyProviderFactory;
import org.apache.hadoop.fs.CreateFlag;
import org.apache.hadoop.fs.FileEncryptionInfo;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.permission.FsPermission;
import org.apache.hadoop.hdfs.DFSClient;
import org.apache.hadoop.hdfs.DistributedFileSystem;
import org.apache.hadoop.hdfs.protocol.HdfsConstants.SafeModeAction;
import org.apache.hadoop.hdfs.protocol.SnapshottableDirectoryStatus;
import org.apache.hadoop.hdfs.server.namenode.NameNode;
import org.apache.hadoop.hdfs.tools.offlineImageViewer.OfflineImageViewerPB;
import org.apache.hadoop.metrics2.lib.DefaultMetricsSystem;

/**
 * Makes the files of this folder: an image of a NameNode 2.10.2 with what a naive count of EDEKs gets wrong, what oiv
 * prints of it, and what a client sees. The files are empty, so no DataNode is needed. README.md has the commands.
 */
public class MakeImage {
  private static DistributedFileSystem fs;

  public static void main(String[] args) throws Exception {
    File work = new File(args[0]).getAbsoluteFile();
    Configuration conf = new Configuration();
    conf.set("fs.defaultFS", "hdfs://127.0.0.1:" + args[1]);
    conf.set("dfs.namenode.http-address", "127.0.0.1:0");
    conf.set("dfs.namenode.name.dir", "file://" + work + "/name");
    conf.set("dfs.encryption.key.provider.uri", "jceks://file" + work + "/keys.jceks");
    conf.set("hadoop.security.key.provider.path", "jceks://file" + work + "/keys.jceks");
    conf.set("dfs.namenode.safemode.extension", "0");
    conf.set("hadoop.security.crypto.codec.classes.aes.ctr.nopadding",
        "org.apache.hadoop.crypto.JceAesCtrCryptoCodec");
    KeyProvider keys = KeyProviderFactory.get(new java.net.URI(conf.get("hadoop.security.key.provider.path")), conf);
    create(keys, "orders", 128);
    create(keys, "pay@roll", 256);
    DefaultMetricsSystem.setMiniClusterMode(true); // format and start are in one process
    NameNode.format(conf);
    NameNode nameNode = NameNode.createNameNode(new String[] {}, conf);
    fs = (DistributedFileSystem) FileSystem.newInstance(conf); // the NameNode closes the one of the cache
    fill(nameNode.getNamesystem().getProvider()); // another instance would not see a roll
    try (PrintStream walk = new PrintStream(new File(work, "walk"), "UTF-8")) {
      walk(walk);
    }
    fs.setSafeMode(SafeModeAction.SAFEMODE_ENTER);
    fs.saveNamespace();
    File image = nameNode.getFSImage().getStorage().getHighestFsImageName();
    java.nio.file.Files.copy(image.toPath(), new File(work, "fsimage").toPath());
    OfflineImageViewerPB.run(new String[] {"-p", "XML", "-i", image.getPath(), "-o", work + "/oiv.xml"});
    Runtime.getRuntime().halt(0); // without an end of the clients, which would close the open file
  }

  private static void create(KeyProvider keys, String name, int bits) throws Exception {
    keys.createKey(name, KeyProvider.options(new Configuration()).setBitLength(bits));
    keys.flush();
  }

  /** Makes files, snapshots, and what happens between them. */
  private static void fill(KeyProvider keys) throws Exception {
    for (String[] zone : new String[][] {{"/orders", "orders"}, {"/pay", "pay@roll"}, {"/arch/retired", "orders"}}) {
      fs.mkdirs(new Path(zone[0]));
      fs.createEncryptionZone(new Path(zone[0]), zone[1]);
    }
    for (String dir : new String[] {"/orders/a/deep", "/orders/b", "/orders/c", "/plain", "/pay/.Trash/u/Current"}) {
      fs.mkdirs(new Path(dir));
    }
    fs.allowSnapshot(new Path("/orders"));
    fs.allowSnapshot(new Path("/arch"));
    touch("/orders/a/f", 20);
    touch("/orders/a/deep/g", 12);
    touch("/orders/c/h", 6);
    touch("/arch/retired/r", 8);
    touch("/pay/p", 8);
    touch("/plain/n", 2);
    fs.createSnapshot(new Path("/orders"), "s1");
    fs.createSnapshot(new Path("/arch"), "s1");
    rename("/orders/a/f00", "/orders/b/renamed");
    rename("/orders/a/deep", "/orders/b/moved");
    rename("/orders/a/f01", "/orders/b/gone");
    for (String gone : new String[] {"/orders/b/gone", "/orders/a/f02", "/orders/b/moved/g01", "/orders/c",
        "/arch/retired"}) {
      fs.delete(new Path(gone), true);
    }
    fs.setPermission(new Path("/orders/a/f04"), new FsPermission((short) 0600));
    keys.rollNewVersion("orders");
    keys.flush();
    touch("/orders/a/new", 10);
    fs.createSnapshot(new Path("/orders"), "s2");
    fs.setPermission(new Path("/orders/a/new00"), new FsPermission((short) 0640));
    for (String gone : new String[] {"/orders/a/new01", "/orders/a/f05", "/orders/a/f07"}) {
      fs.delete(new Path(gone), true);
    }
    fs.createSnapshot(new Path("/orders"), "s3");
    rename("/pay/p00", "/pay/.Trash/u/Current/p00");
    open("/pay/open", false);
    rename("/orders/a", "/orders/z");
    fs.deleteSnapshot(new Path("/orders"), "s2");
  }

  private static void touch(String prefix, int n) throws Exception {
    for (int i = 0; i < n; i++) {
      open(String.format("%s%02d", prefix, i), true);
    }
  }

  /** Makes an empty file without the encrypting stream, which Hadoop 2.10 cannot close in Java 9 and later. */
  private static void open(String file, boolean close) throws Exception {
    DFSClient client = fs.getClient();
    OutputStream out = client.create(file, FsPermission.getFileDefault(), EnumSet.of(CreateFlag.CREATE), true,
        (short) 1, 1 << 20, null, 4096, null);
    if (close) {
      out.close();
    }
  }

  private static void rename(String from, String to) throws Exception {
    if (!fs.rename(new Path(from), new Path(to))) {
      throw new IllegalStateException(from + " was not renamed");
    }
  }

  /** Prints "live" or "snapshot", version and EDEK of each path that a client sees. */
  private static void walk(PrintStream out) throws Exception {
    files(new Path("/"), "live", out);
    for (SnapshottableDirectoryStatus folder : fs.getSnapshottableDirListing()) {
      for (FileStatus snapshot : fs.listStatus(new Path(folder.getFullPath(), ".snapshot"))) {
        files(snapshot.getPath(), "snapshot", out);
      }
    }
  }

  private static void files(Path folder, String where, PrintStream out) throws Exception {
    for (FileStatus s : fs.listStatus(folder)) {
      if (s.isDirectory()) {
        files(s.getPath(), where, out);
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
